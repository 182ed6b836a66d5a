"""Which rows to label next: is a choice by margin and diversity better than a random one? See README.md."""

"""Built-in tasks: questions made from maintained data packages and our own lists, the same on every machine."""

import functools

from abmll.errors import unknown_name
from abmll.question import Task
from abmll.tasks.builtin import everyday, geography, language, numbers
from abmll.tasks.builtin.family import FAMILIES, build

__all__ = ["builtin_names", "builtin_task", "builtin_tasks"]

_REGISTERED = (geography, language, numbers, everyday)  # importing a module registers its families


def builtin_names(held_out: bool = False) -> tuple[str, ...]:
    """The names of the families for meta-training, or of those held out from it.

    >>> builtin_names(held_out=True)
    ('occupations', 'parts-of-speech', 'state-capitals')
    """
    return tuple(sorted(name for name, family in FAMILIES.items() if family.held_out == held_out))


def builtin_tasks(held_out: bool = False) -> tuple[Task, ...]:
    """All families for meta-training, or the three held out from it.

    >>> [(task.name, len(task.train) >= 20, len(task.test) >= 60) for task in builtin_tasks(held_out=True)]
    [('occupations', True, True), ('parts-of-speech', True, True), ('state-capitals', True, True)]
    """
    return tuple(builtin_task(name) for name in builtin_names(held_out))


@functools.cache
def builtin_task(name: str) -> Task:
    """One family, held out or not.

    Raises:
        AbmllError: there is no family of that name.

    >>> builtin_task("capitals").train[0].choices.__len__()
    4
    """
    if name not in FAMILIES:
        raise unknown_name("built-in task", name, FAMILIES)
    return build(FAMILIES[name])

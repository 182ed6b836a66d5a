"""How often every test of the library rejects where there is nothing to find: simulated worlds, measured scatter."""

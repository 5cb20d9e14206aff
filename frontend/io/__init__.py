"""Features of folders, matched and written as map builders read them: COLMAP's database and hloc's HDF5 files."""

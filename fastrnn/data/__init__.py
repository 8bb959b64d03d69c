"""Data sets: everything here ends in the h5 layout that `load_coco_data` reads."""

"""Pixels and voxels from files; digitally reconstructed radiographs in ``imaging.drr``."""

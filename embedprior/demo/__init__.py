"""The main job on virtual patients: every stage, small, offline."""

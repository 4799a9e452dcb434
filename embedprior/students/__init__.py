"""Everything that scores a radiograph, and the controls it is compared with (see ``students.registry``)."""

"""Drop-ins for the samplers of other libraries: one module for each."""

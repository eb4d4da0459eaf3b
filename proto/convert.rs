//! v1 to the model and back; an error names the field.

//! The shared secret table and the redactor.

"""Private kernels of pope_core; nothing here is public API."""

"""One file an operation: its fake kernel, its gradient, and the public function. See `gmfast.functional`."""

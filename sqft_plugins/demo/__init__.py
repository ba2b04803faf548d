"""The whole way once, on a real model: what `sqft demo` runs."""

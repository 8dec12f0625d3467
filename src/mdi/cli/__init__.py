"""What people type: options parsed, runs composed, output printed."""

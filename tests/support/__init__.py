"""What tests share: stand-ins, small models, rings, processes, raw frames."""

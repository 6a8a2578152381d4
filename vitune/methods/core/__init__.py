"""What every method is built on: layers, injection into PEFT, roles, the registry."""

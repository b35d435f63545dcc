"""The gRPC server: ``app`` wires it, ``status`` maps its errors, ``convert`` is the border between proto and domain."""

"""The direct exporter: builds the ONNX graph node by node and streams the weights into external data."""

"""Networks in the formats of other runtimes: ONNX and torch.export."""

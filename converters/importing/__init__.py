"""From ONNX and torch to Caffe: a program of ONNX operators, whoever wrote it, becomes a net of layers.

`onnx_graph` and `aten` read a program; `translation` gives each operator to its rule; the other files hold the rules,
one group of operators each.
"""

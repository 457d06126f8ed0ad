"""Files other than Caffe's: one module a target format reads and writes it; `convert`, `inspect`, `verify`."""

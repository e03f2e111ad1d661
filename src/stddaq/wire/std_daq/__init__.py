"""Protobuf messages generated from proto/std_daq by proto/generate; never edited by hand."""

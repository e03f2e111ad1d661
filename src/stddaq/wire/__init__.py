"""What crosses a process boundary: sockets, protobuf messages, shared memory. Nothing else lives here."""

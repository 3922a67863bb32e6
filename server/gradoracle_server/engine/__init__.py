"""Pure torch: graphs to programs, programs to values and derivatives. Knows nothing of gRPC or protobuf."""

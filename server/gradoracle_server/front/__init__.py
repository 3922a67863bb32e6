"""The front process: gRPC, queues, deadlines, metrics, health and the workers' lives. It never imports torch."""

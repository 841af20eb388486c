"""The microkernel: messages, bus, ring, queues, workflows, database. It knows nothing of clouds."""

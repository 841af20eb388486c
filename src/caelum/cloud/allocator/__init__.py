"""Host allocation: which host a virtual machine goes to, and the CPU and memory that it takes there."""

"""An example of a plugin: greetings for hosts, and racks that VMs can be held to."""

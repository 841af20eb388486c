"""The console proxy: WebSocket to VNC and to serial consoles."""

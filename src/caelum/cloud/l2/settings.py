"""Settings of L2 networks."""

from __future__ import annotations

from caelum.kernel.settings import setting

DELETE_BRIDGE = setting("l2Network", "deleteL2.bridge", True, bool, "Physically delete l2Network bridge")
"""Whether a bridge goes from the hosts when its network leaves them."""

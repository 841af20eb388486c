"""What other parts may do when a VM starts and stops."""

from __future__ import annotations

from collections.abc import Sequence

from caelum.cloud.host.spec import HostOrder, NicSpec, VmSpec
from caelum.kernel.extension import ExtensionPoint


class VmResourceProvider(ExtensionPoint):
    """Prepares what a VM needs on its host, and takes it away again.

    Every method is idempotent: a resumed workflow calls it again. A provider that has no part in a VM returns. To take
    away, a description need not say whose the VM is, and what its system tags have its guest told.
    """

    async def prepare(self, spec: VmSpec, host_uuid: str) -> None:
        """Before the VM starts on the host; an exception fails the start."""

    async def prepare_start(self, spec: VmSpec, host_uuid: str) -> Sequence[HostOrder]:
        """The same when the host's turn for the start has come: what is left for it to do right before, in one go with
        the start."""
        await self.prepare(spec, host_uuid)
        return ()

    async def release(self, spec: VmSpec, host_uuid: str) -> None:
        """After the VM has stopped, moved away, or failed to start. Work that a host cannot do now goes to the
        garbage collector: a release does not fail because a host is away."""

    async def release_orders(self, spec: VmSpec, host_uuid: str) -> Sequence[HostOrder] | None:  # noqa: ARG002
        """What `release` would have the host do, so that the VM's destruction there does it; None: call `release`."""
        return None

    async def prepare_nic(self, spec: VmSpec, nic: NicSpec, host_uuid: str) -> None:
        """Before a NIC is attached to the running VM. `nic` may not be in `spec` yet."""

    async def release_nic(self, spec: VmSpec, nic: NicSpec, host_uuid: str) -> None:
        """After a NIC has been detached from the running VM."""

"""Tags and overrides of settings: each hangs on a resource that exists."""

from __future__ import annotations

from collections.abc import Iterator

from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.kernel.settings import ResourceConfigModel
from caelum.kernel.tag import SystemTagModel, UserTagModel


class TagCheck(AuditCheck):
    """Finds what hangs on nothing."""

    reads = (SystemTagModel, UserTagModel, ResourceConfigModel)

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """Tags, then overrides."""
        for model, vo in ((SystemTagModel, "SystemTagVO"), (UserTagModel, "UserTagVO")):
            for row in seen.rows(model):
                if not seen.exists(row.resource_uuid):
                    kind = row.tag.partition("::")[0]  # what follows may be a secret
                    details = (
                        f"tag {kind}[uuid:{row.uuid}] hangs on {row.resource_type}[uuid:{row.resource_uuid}], gone"
                    )
                    about = (row.resource_uuid,)
                    yield finding("TagOnNothing", vo, row.uuid, details, about=about, resourceUuid=row.resource_uuid)
        for row in seen.rows(ResourceConfigModel):
            if not seen.exists(row.resource_uuid):
                what = f"setting {row.category}/{row.name}[uuid:{row.uuid}]"
                details = f"{what} is given for resource[uuid:{row.resource_uuid}], gone"
                about = (row.resource_uuid,)
                yield finding("SettingOnNothing", "ResourceConfigVO", row.uuid, details, about=about, name=row.name)

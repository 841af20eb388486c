"""${message}."""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = "${up_revision}"
down_revision = ${'"%s"' % down_revision if down_revision else None}
branch_labels = None
depends_on = None
# "expand" only adds, so that the version before goes on working; "contract" takes away what only that needs.
phase = "expand"


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}

-- The test by the first jobs begins again when the content of the work script changes, not only its name.
-- depends: 0020-tape

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects
    ADD COLUMN tested_scripts text[] NOT NULL DEFAULT '{}',
    ADD COLUMN tested_since   timestamptz NOT NULL DEFAULT '-infinity';
COMMENT ON COLUMN osgprod_data.projects.tested_scripts IS 'the last contents of the work script that jobs got, the newest first: 16 digits of the SHA-256 of each, 8 at most';
COMMENT ON COLUMN osgprod_data.projects.tested_since   IS 'when the test by the first jobs began: only attempts that started later count for it';

RESET ROLE;

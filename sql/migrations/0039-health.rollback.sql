SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects DROP COLUMN activated_at;
COMMENT ON COLUMN osgprod_data.recent_failures.blamed IS 'what else is to blame: project, place, file, address or setting; NULL = the slice or the worker, as far as is known';

RESET ROLE;

-- health tells since when a project may work again; the comment of blamed has the value that 0035 left out.
-- depends: 0037-functions

SET LOCAL ROLE osgprod_owner;

ALTER TABLE osgprod_data.projects ADD COLUMN activated_at timestamptz NOT NULL DEFAULT '-infinity';
COMMENT ON COLUMN osgprod_data.projects.activated_at IS 'when an operator last ended a pause or a drain';
COMMENT ON COLUMN osgprod_data.recent_failures.blamed IS
    'what else is to blame: project, place, file, address, worker or setting; NULL = what failed or the worker, as far as is known';

RESET ROLE;

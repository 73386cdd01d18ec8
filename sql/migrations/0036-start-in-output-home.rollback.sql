SET LOCAL ROLE osgprod_owner;

COMMENT ON COLUMN osgprod_data.projects.output_home IS 'URL of the folder to which HTCondor brings outputs, for slices that report no URL; with {cluster}, {process}, {project}; NULL = unknown';

RESET ROLE;

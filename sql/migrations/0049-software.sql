-- verify looks for reports by other software than the first, and need not read all reports for that.
-- depends: 0045-functions

SET LOCAL ROLE osgprod_owner;

CREATE INDEX reports_software ON osgprod_data.reports USING brin (project_id, software COLLATE "C") WITH (pages_per_range = 32);

RESET ROLE;

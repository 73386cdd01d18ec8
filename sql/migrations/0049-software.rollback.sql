SET LOCAL ROLE osgprod_owner;

DROP INDEX osgprod_data.reports_software;

RESET ROLE;

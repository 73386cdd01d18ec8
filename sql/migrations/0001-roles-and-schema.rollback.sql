-- The roles stay: they belong to the server, and other databases may use them.
-- The schema stays too: it holds the register of the migrations themselves.
ALTER DEFAULT PRIVILEGES FOR ROLE osgprod_owner GRANT EXECUTE ON FUNCTIONS TO PUBLIC;

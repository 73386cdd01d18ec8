-- The files of this folder are loaded in the order of their names, in one transaction; functions may name each other in
-- any order. tests/sql checks all bodies once they are loaded.
SET LOCAL check_function_bodies = off;

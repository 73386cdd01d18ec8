-- Nothing to undo: the functions of the former release deliver worker-banned.
SELECT;

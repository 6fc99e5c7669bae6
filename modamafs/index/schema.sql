-- The index of one store. It is never the truth: it may be deleted at any moment, and is made again
-- from what lies on the store. Readable with any SQLite program while modamafs writes it (WAL).
--
-- Inode numbers are the store's; times are nanoseconds since 1970 (UTC); sizes are bytes. A name or
-- path is TEXT, or, where it is no UTF-8, a BLOB of its bytes.
--
-- The version of this form is in "PRAGMA user_version"; migrations/ has the way from older ones.

-- What the index says of itself: store (its path), epoch (another one for every index that is made:
-- positions in "changes" hold within one epoch only), complete (1 once everything was looked at).
CREATE TABLE info (
  key TEXT PRIMARY KEY,
  value
) WITHOUT ROWID;

-- Every entry of every directory. An inode with several names (hard links) has a row for each.
-- Records (".modama") are no entries. The store's root has parent 0 and an empty name.
CREATE TABLE nodes (
  id INTEGER PRIMARY KEY,
  parent INTEGER NOT NULL,      -- inode number of the directory that it lies in
  name NOT NULL,
  ino INTEGER NOT NULL,
  generation INTEGER NOT NULL,  -- tells inodes apart that had the same number one after the other
  kind TEXT NOT NULL,           -- file, directory, symlink, fifo, socket, character, block
  mode INTEGER NOT NULL,        -- permission bits, as in st_mode without the kind
  uid INTEGER NOT NULL,
  gid INTEGER NOT NULL,
  nlink INTEGER NOT NULL,
  size_bytes INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL,
  ctime_ns INTEGER NOT NULL,
  btime_ns INTEGER NOT NULL,    -- 0 where the file system keeps none
  project INTEGER,              -- inode number of the project's directory that it is or lies in
  session INTEGER,              -- the same of the session's
  sealed INTEGER NOT NULL,      -- 1: it is, or lies in, a directory that is sealed
  UNIQUE (parent, name)
);
CREATE INDEX nodes_ino ON nodes (ino);
CREATE INDEX nodes_session ON nodes (session);
CREATE INDEX nodes_size ON nodes (size_bytes);
CREATE INDEX nodes_mtime ON nodes (mtime_ns);
CREATE INDEX nodes_directories ON nodes (parent, name, ino) WHERE kind = 'directory';

-- Parts of names, of three characters or more: SELECT rowid FROM names WHERE names MATCH '"art"'.
CREATE VIRTUAL TABLE names USING fts5 (
  name, content = 'nodes', content_rowid = 'id', tokenize = 'trigram'
);

-- Directories of projects and of sessions that have a record; "record" is its text (JSON). Where
-- it can't be understood, "problem" says why, and all else is NULL.
CREATE TABLE projects (
  ino INTEGER PRIMARY KEY,      -- of the directory
  title TEXT,
  owner TEXT,                   -- login name, or the person's name
  visibility TEXT,              -- members, private
  record TEXT,
  problem TEXT
);
CREATE TABLE sessions (
  ino INTEGER PRIMARY KEY,
  project INTEGER NOT NULL,     -- inode number of the project's directory
  title TEXT,
  owner TEXT,
  instrument TEXT,
  date TEXT,                    -- YYYY-MM-DD, the day of the measurement
  record TEXT,
  problem TEXT
);

-- Directories that are sealed, or being so.
CREATE TABLE seals (
  parent INTEGER NOT NULL,      -- inode number of the directory that the sealed one lies in
  name NOT NULL,
  state TEXT NOT NULL,          -- sealing, sealed, unsealing; damaged: the record is no JSON
  content_hash TEXT,
  sealed_at TEXT,               -- UTC, ISO 8601
  sealed_by TEXT,
  file_count INTEGER,
  size_bytes INTEGER,
  PRIMARY KEY (parent, name)
) WITHOUT ROWID;

-- What the manifests of sealed directories say.
CREATE TABLE hashes (
  parent INTEGER NOT NULL,      -- as in seals
  seal NOT NULL,                -- its name
  path NOT NULL,                -- relative to the sealed directory
  blake3 TEXT NOT NULL,         -- 64 hexadecimal digits
  PRIMARY KEY (parent, seal, path)
) WITHOUT ROWID;
CREATE INDEX hashes_blake3 ON hashes (blake3);

-- Values that were read from instrument files, and those that people gave a project or a session.
CREATE TABLE metadata (
  ino INTEGER NOT NULL,         -- of the file, or of the project's or session's directory
  key TEXT NOT NULL,            -- lower_snake_case: beam_energy
  number REAL,                  -- the value where it is one (true is 1); NULL: it is not
  text TEXT NOT NULL,           -- the value, as people read it
  unit TEXT,                    -- as it was given: keV
  PRIMARY KEY (ino, key)
) WITHOUT ROWID;
CREATE INDEX metadata_number ON metadata (key, unit, number);
CREATE INDEX metadata_text ON metadata (key, text COLLATE NOCASE);

-- The words of titles, descriptions, people, samples, keywords and metadata, a row for each inode
-- that has any: SELECT ino FROM notes WHERE rowid IN (SELECT rowid FROM words WHERE words MATCH …).
CREATE TABLE notes (
  ino INTEGER PRIMARY KEY,
  text TEXT NOT NULL
);
CREATE VIRTUAL TABLE words USING fts5 (
  text, content = 'notes', content_rowid = 'ino', tokenize = "unicode61 remove_diacritics 2"
);

-- Records that were read, so that they are read again only when they have changed. "kind" and "name"
-- say which: project and session (name ''), seal (of what is sealed), metadata (of the record).
CREATE TABLE records (
  directory INTEGER NOT NULL,   -- inode number of the directory that it is of
  kind TEXT NOT NULL,
  name NOT NULL,
  stamp TEXT NOT NULL,          -- inode, size and time of the record when it was read
  about,                        -- metadata: the file's path in the session; NULL: it is broken
  subject INTEGER,              -- inode number of what it describes; NULL: there is none
  PRIMARY KEY (directory, kind, name)
) WITHOUT ROWID;
CREATE INDEX records_subject ON records (subject) WHERE subject IS NOT NULL;

-- What has changed, in order. Paths are relative to the store, as they were then. The oldest are
-- forgotten after a while. "directory" is what the entry lay in then: who may be told of it now is
-- asked of that one, and not of what has got its path since.
CREATE TABLE changes (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  at_ns INTEGER NOT NULL,
  event TEXT NOT NULL,          -- created, modified, attributes, removed, moved; lost: some unknown
  path NOT NULL,                -- "modified", of a directory: what is too deep for a path has changed
  directory INTEGER,            -- inode number; NULL: not known
  generation INTEGER,           -- of that inode
  old_path,                     -- of "moved"; NULL: from outside the store
  old_directory INTEGER,
  old_generation INTEGER,
  kind TEXT,                    -- as in nodes
  outside INTEGER NOT NULL,     -- 1: not made through a mount of modamafs
  up_to_bytes INTEGER NOT NULL  -- how long the paths of this row and of all before it are together
);

// Keeps a folder's library linkable while it has no sources yet.

"""One request and its response, with no policy: nothing here waits, repeats or decides."""

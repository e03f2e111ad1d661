"""The preview service `std_preview`: newest images, reduced and encoded once for all browsers.

`reduction` and `quantisation` make a small image of counts and marks, `regions` numbers of parts of it,
`pictures` all that is wanted of one image; `levels` is its contrast, `encoding` the message; `preview` is the
loop, `service` the daemon. `stddaq-rest` passes the messages on to browsers.
"""

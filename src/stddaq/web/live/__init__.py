"""What browsers follow: previews of images (`previews`, `pace`) and the driver's status (`driver_feed`).

`session` is one WebSocket of a browser, whatever is sent over it.
"""

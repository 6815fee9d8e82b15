"""The configuration of the shops: classes, as ``app.config.from_object`` takes them."""

from __future__ import annotations


class Config:
    """What all shops share, and the shop that runs alone."""

    SHOP_NAME = "The corner shop"
    TASKER_DATABASE_URI = "sqlite:///shop.db"  # a relative path is relative to the instance folder
    TASKER_DASHBOARD_URL = "/tasks"  # open to you, with --debug; TASKER_DASHBOARD_USER and _PASSWORD open it to others
    TASKER_QUEUES = ("orders", "reports")  # orders are claimed first


class North(Config):
    """One of two shops in one process. Each needs a database of its own."""

    SHOP_NAME = "North"
    TASKER_DATABASE_URI = "sqlite:///north.db"


class South(Config):
    """The other one."""

    SHOP_NAME = "South"
    TASKER_DATABASE_URI = "sqlite:///south.db"

"""Who may connect: the device registry, the gateway's own identity, tokens proved and made, enrolment.

Knows neither sockets nor MQTT packets; durable state is in a `StateStore`, the gateway's keys in files.
"""

from gateway.devices.authenticator import AuthSettings, GatewayAuthenticator, Issuer, own_issuer
from gateway.devices.enrolment import Enrolment, EnrolmentRefused
from gateway.devices.identity import GatewayIdentity, create_identity, load_identity
from gateway.devices.operator_tokens import create_token
from gateway.devices.records import DeviceDocument, DeviceRecord, KeyDocument
from gateway.devices.registry import Registry

__all__ = [
    "AuthSettings",
    "DeviceDocument",
    "DeviceRecord",
    "Enrolment",
    "EnrolmentRefused",
    "GatewayAuthenticator",
    "GatewayIdentity",
    "Issuer",
    "KeyDocument",
    "Registry",
    "create_identity",
    "create_token",
    "load_identity",
    "own_issuer",
]

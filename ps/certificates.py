"""Certificates of one run, made by whoever starts it. The role stands in the subject alternative name."""

import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ps.credentials import Tls
from ps.roles import Role

VALID_DAYS = 365
"""Longer than a run; what ends a certificate's use is that the authority's key goes with the run."""
_CLOCKS_DIFFER = datetime.timedelta(hours=24)


class Authority:
    """Signs certificates. Its key never leaves the process."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name("pserver authority")
        usage = _usage(signs=True)
        builder = _builder(self._name, self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).add_extension(usage, critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())

    def issue(self, role: Role) -> Tls:
        """A new key and its certificate for a process of that role; only those that serve can be called by name."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(role.uri)]
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role.serves:
            names.append(x509.DNSName(role.host_name))
            purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = (
            _builder(_common_name(f"pserver {role}"), self._name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Tls(
            authority=_pem(self._certificate),
            certificate=_pem(certificate),
            key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        )


def check_tls(tls: Tls, role: Role) -> None:
    """Raises ValueError unless the texts are an authority's certificate, one of it for the role that is valid now, and the latter's key."""
    try:
        authority, own = (x509.load_pem_x509_certificate(text.encode()) for text in (tls.authority, tls.certificate))
        key = load_pem_private_key(tls.key.encode(), None)
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        own.verify_directly_issued_by(authority)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    if key.public_key() != own.public_key():
        raise ValueError("the key is another certificate's")
    if role.uri not in names.get_values_for_type(x509.UniformResourceIdentifier):
        raise ValueError("the certificate is another role's")
    now = datetime.datetime.now(datetime.UTC)
    for one in (authority, own):
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            raise ValueError(f"a certificate is valid from {one.not_valid_before_utc:%Y-%m-%d} to {one.not_valid_after_utc:%Y-%m-%d} only")


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()

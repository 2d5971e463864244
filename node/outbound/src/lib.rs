//! The engine of the SendGateway: ordered stages and the clearance that only it can mint.

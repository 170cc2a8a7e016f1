# ruff: noqa
"""Messages of reflection_v1alpha.proto. Written by protos/generate.py; do not edit."""

from google.protobuf.message_factory import GetMessageClass

from merrow.wire._generated.pool import POOL

POOL.AddSerializedFile(
    b"\x0a\x18reflection_v1alpha.proto\x12\x17"
    b"grpc.reflection.v1alpha\x22\xf8\x02\x0a\x17"
    b"ServerReflectionRequest\x12\x12\x0a\x04h"
    b"ost\x18\x01 \x01(\x09R\x04host\x12*\x0a\x10file_by_f"
    b"ilename\x18\x03 \x01(\x09H\x00R\x0efileByFilen"
    b"ame\x126\x0a\x16file_containing_symbo"
    b"l\x18\x04 \x01(\x09H\x00R\x14fileContainingSym"
    b"bol\x12g\x0a\x19file_containing_exten"
    b"sion\x18\x05 \x01(\x0b2).grpc.reflection"
    b".v1alpha.ExtensionRequestH\x00R"
    b"\x17fileContainingExtension\x12B\x0a\x1d"
    b"all_extension_numbers_of_typ"
    b"e\x18\x06 \x01(\x09H\x00R\x19allExtensionNumbe"
    b"rsOfType\x12%\x0a\x0dlist_services\x18\x07 "
    b"\x01(\x09H\x00R\x0clistServicesB\x11\x0a\x0fmessa"
    b"ge_request\x22f\x0a\x10ExtensionReque"
    b"st\x12'\x0a\x0fcontaining_type\x18\x01 \x01(\x09R"
    b"\x0econtainingType\x12)\x0a\x10extension"
    b"_number\x18\x02 \x01(\x05R\x0fextensionNumb"
    b"er\x22\xc7\x04\x0a\x18ServerReflectionRespo"
    b"nse\x12\x1d\x0a\x0avalid_host\x18\x01 \x01(\x09R\x09val"
    b"idHost\x12[\x0a\x10original_request\x18\x02"
    b" \x01(\x0b20.grpc.reflection.v1alp"
    b"ha.ServerReflectionRequestR\x0f"
    b"originalRequest\x12k\x0a\x18file_desc"
    b"riptor_response\x18\x04 \x01(\x0b2/.grpc"
    b".reflection.v1alpha.FileDesc"
    b"riptorResponseH\x00R\x16fileDescri"
    b"ptorResponse\x12w\x0a\x1eall_extensio"
    b"n_numbers_response\x18\x05 \x01(\x0b20.g"
    b"rpc.reflection.v1alpha.Exten"
    b"sionNumberResponseH\x00R\x1ballExt"
    b"ensionNumbersResponse\x12d\x0a\x16lis"
    b"t_services_response\x18\x06 \x01(\x0b2,."
    b"grpc.reflection.v1alpha.List"
    b"ServiceResponseH\x00R\x14listServi"
    b"cesResponse\x12O\x0a\x0eerror_respons"
    b"e\x18\x07 \x01(\x0b2&.grpc.reflection.v1"
    b"alpha.ErrorResponseH\x00R\x0derror"
    b"ResponseB\x12\x0a\x10message_response"
    b"\x22L\x0a\x16FileDescriptorResponse\x122"
    b"\x0a\x15file_descriptor_proto\x18\x01 \x03("
    b"\x0cR\x13fileDescriptorProto\x22j\x0a\x17Ex"
    b"tensionNumberResponse\x12$\x0a\x0ebas"
    b"e_type_name\x18\x01 \x01(\x09R\x0cbaseTypeN"
    b"ame\x12)\x0a\x10extension_number\x18\x02 \x03("
    b"\x05R\x0fextensionNumber\x22Y\x0a\x13ListSe"
    b"rviceResponse\x12B\x0a\x07service\x18\x01 \x03"
    b"(\x0b2(.grpc.reflection.v1alpha"
    b".ServiceResponseR\x07service\x22%\x0a"
    b"\x0fServiceResponse\x12\x12\x0a\x04name\x18\x01 \x01"
    b"(\x09R\x04name\x22S\x0a\x0dErrorResponse\x12\x1d\x0a"
    b"\x0aerror_code\x18\x01 \x01(\x05R\x09errorCode"
    b"\x12#\x0a\x0derror_message\x18\x02 \x01(\x09R\x0cerr"
    b"orMessage2\x93\x01\x0a\x10ServerReflecti"
    b"on\x12\x7f\x0a\x14ServerReflectionInfo\x120"
    b".grpc.reflection.v1alpha.Ser"
    b"verReflectionRequest\x1a1.grpc."
    b"reflection.v1alpha.ServerRef"
    b"lectionResponse(\x010\x01b\x06proto3"
)
DESCRIPTOR = POOL.FindFileByName("reflection_v1alpha.proto")

ServerReflectionRequest = GetMessageClass(DESCRIPTOR.message_types_by_name["ServerReflectionRequest"])
ExtensionRequest = GetMessageClass(DESCRIPTOR.message_types_by_name["ExtensionRequest"])
ServerReflectionResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["ServerReflectionResponse"])
FileDescriptorResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["FileDescriptorResponse"])
ExtensionNumberResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["ExtensionNumberResponse"])
ListServiceResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["ListServiceResponse"])
ServiceResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["ServiceResponse"])
ErrorResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["ErrorResponse"])

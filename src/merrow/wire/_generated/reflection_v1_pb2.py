# ruff: noqa
"""Messages of reflection_v1.proto. Written by protos/generate.py; do not edit."""

from google.protobuf.message_factory import GetMessageClass

from merrow.wire._generated.pool import POOL

POOL.AddSerializedFile(
    b"\x0a\x13reflection_v1.proto\x12\x12grpc."
    b"reflection.v1\x22\xf3\x02\x0a\x17ServerRefl"
    b"ectionRequest\x12\x12\x0a\x04host\x18\x01 \x01(\x09R"
    b"\x04host\x12*\x0a\x10file_by_filename\x18\x03 "
    b"\x01(\x09H\x00R\x0efileByFilename\x126\x0a\x16fil"
    b"e_containing_symbol\x18\x04 \x01(\x09H\x00R"
    b"\x14fileContainingSymbol\x12b\x0a\x19fil"
    b"e_containing_extension\x18\x05 \x01(\x0b"
    b"2$.grpc.reflection.v1.Extens"
    b"ionRequestH\x00R\x17fileContaining"
    b"Extension\x12B\x0a\x1dall_extension_n"
    b"umbers_of_type\x18\x06 \x01(\x09H\x00R\x19allE"
    b"xtensionNumbersOfType\x12%\x0a\x0dlis"
    b"t_services\x18\x07 \x01(\x09H\x00R\x0clistServ"
    b"icesB\x11\x0a\x0fmessage_request\x22f\x0a\x10E"
    b"xtensionRequest\x12'\x0a\x0fcontainin"
    b"g_type\x18\x01 \x01(\x09R\x0econtainingType"
    b"\x12)\x0a\x10extension_number\x18\x02 \x01(\x05R\x0f"
    b"extensionNumber\x22\xae\x04\x0a\x18ServerRe"
    b"flectionResponse\x12\x1d\x0a\x0avalid_ho"
    b"st\x18\x01 \x01(\x09R\x09validHost\x12V\x0a\x10origi"
    b"nal_request\x18\x02 \x01(\x0b2+.grpc.ref"
    b"lection.v1.ServerReflectionR"
    b"equestR\x0foriginalRequest\x12f\x0a\x18f"
    b"ile_descriptor_response\x18\x04 \x01("
    b"\x0b2*.grpc.reflection.v1.FileD"
    b"escriptorResponseH\x00R\x16fileDes"
    b"criptorResponse\x12r\x0a\x1eall_exten"
    b"sion_numbers_response\x18\x05 \x01(\x0b2"
    b"+.grpc.reflection.v1.Extensi"
    b"onNumberResponseH\x00R\x1ballExten"
    b"sionNumbersResponse\x12_\x0a\x16list_"
    b"services_response\x18\x06 \x01(\x0b2'.gr"
    b"pc.reflection.v1.ListService"
    b"ResponseH\x00R\x14listServicesResp"
    b"onse\x12J\x0a\x0eerror_response\x18\x07 \x01(\x0b"
    b"2!.grpc.reflection.v1.ErrorR"
    b"esponseH\x00R\x0derrorResponseB\x12\x0a\x10"
    b"message_response\x22L\x0a\x16FileDesc"
    b"riptorResponse\x122\x0a\x15file_descr"
    b"iptor_proto\x18\x01 \x03(\x0cR\x13fileDescr"
    b"iptorProto\x22j\x0a\x17ExtensionNumbe"
    b"rResponse\x12$\x0a\x0ebase_type_name\x18"
    b"\x01 \x01(\x09R\x0cbaseTypeName\x12)\x0a\x10exten"
    b"sion_number\x18\x02 \x03(\x05R\x0fextension"
    b"Number\x22T\x0a\x13ListServiceRespons"
    b"e\x12=\x0a\x07service\x18\x01 \x03(\x0b2#.grpc.re"
    b"flection.v1.ServiceResponseR"
    b"\x07service\x22%\x0a\x0fServiceResponse\x12"
    b"\x12\x0a\x04name\x18\x01 \x01(\x09R\x04name\x22S\x0a\x0dError"
    b"Response\x12\x1d\x0a\x0aerror_code\x18\x01 \x01(\x05"
    b"R\x09errorCode\x12#\x0a\x0derror_message"
    b"\x18\x02 \x01(\x09R\x0cerrorMessage2\x89\x01\x0a\x10Ser"
    b"verReflection\x12u\x0a\x14ServerRefle"
    b"ctionInfo\x12+.grpc.reflection."
    b"v1.ServerReflectionRequest\x1a,"
    b".grpc.reflection.v1.ServerRe"
    b"flectionResponse(\x010\x01Bf\x0a\x15io.g"
    b"rpc.reflection.v1B\x15ServerRef"
    b"lectionProtoP\x01Z4google.golan"
    b"g.org/grpc/reflection/grpc_r"
    b"eflection_v1b\x06proto3"
)
DESCRIPTOR = POOL.FindFileByName("reflection_v1.proto")

ServerReflectionRequest = GetMessageClass(DESCRIPTOR.message_types_by_name["ServerReflectionRequest"])
ExtensionRequest = GetMessageClass(DESCRIPTOR.message_types_by_name["ExtensionRequest"])
ServerReflectionResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["ServerReflectionResponse"])
FileDescriptorResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["FileDescriptorResponse"])
ExtensionNumberResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["ExtensionNumberResponse"])
ListServiceResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["ListServiceResponse"])
ServiceResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["ServiceResponse"])
ErrorResponse = GetMessageClass(DESCRIPTOR.message_types_by_name["ErrorResponse"])

/** What `virsh` of libvirt 9.0 printed, except for the folders. */

export const FULL = `<domainbackup mode='pull'>
  <server transport='unix' socket='/var/tmp/nbd &amp; x&apos;y.sock'/>
  <disks>
    <disk name='vda' backup='yes' type='file' backupmode='full' exportname='vda' index='3'>
      <driver type='qcow2'/>
      <scratch file='/var/tmp/scratch.vda'/>
    </disk>
    <disk name='vdb' backup='yes' type='file' backupmode='full' exportname='vdb' index='4'>
      <driver type='qcow2'/>
      <scratch file='/var/tmp/scratch.vdb'/>
    </disk>
  </disks>
</domainbackup>
`;

export const INCREMENTAL = `<domainbackup mode='pull'>
  <incremental>cp1</incremental>
  <server transport='unix' socket='/var/tmp/nbd.sock'/>
  <disks>
    <disk name='vda' backup='yes' type='file' backupmode='incremental' incremental='cp1' exportname='vda' exportbitmap='backup-vda' index='5'>
      <driver type='qcow2'/>
      <scratch file='/var/tmp/scratch.vda'/>
    </disk>
    <disk name='vdb' backup='no'/>
  </disks>
</domainbackup>
`;

/** Over TCP, with a base for one disk only, and under custom names. */
export const MIXED = `<domainbackup mode='pull'>
  <incremental>cp2</incremental>
  <server transport='tcp' name='127.0.0.1' port='10999'/>
  <disks>
    <disk name='vda' backup='yes' type='file' backupmode='incremental' incremental='cp2' exportname='sys&lt;disk' exportbitmap='dirty-a' index='7'>
      <driver type='qcow2'/>
      <scratch file='/var/tmp/scratch.vda'/>
    </disk>
    <disk name='vdb' backup='yes' type='file' backupmode='full' exportname='vdb' index='8'>
      <driver type='qcow2'/>
      <scratch file='/var/tmp/scratch.vdb'/>
    </disk>
  </disks>
</domainbackup>
`;

/** `exportbitmap` was given although the disk is full: libvirt keeps the attribute. */
export const FULL_WITH_BITMAP_NAME = `<domainbackup mode='pull'>
  <server transport='unix' socket='/var/tmp/nbd.sock'/>
  <disks>
    <disk name='vda' backup='yes' type='file' backupmode='full' exportname='vda' exportbitmap='changes' index='8'>
      <driver type='qcow2'/>
      <scratch file='/var/tmp/scratch.vda'/>
    </disk>
    <disk name='vdb' backup='no'/>
  </disks>
</domainbackup>
`;

export const BLOCK_SCRATCH = `<domainbackup mode='pull'>
  <server transport='tcp' name='::1' port='10998'/>
  <disks>
    <disk name='vda' backup='yes' type='block' backupmode='full' exportname='vda' index='4'>
      <driver type='qcow2'/>
      <scratch dev='/dev/loop0'/>
    </disk>
    <disk name='vdb' backup='no'/>
  </disks>
</domainbackup>
`;

export const CHECKPOINT = `<domaincheckpoint>
  <name>cp3</name>
  <parent>
    <name>cp2</name>
  </parent>
  <creationTime>1795185949</creationTime>
  <disks>
    <disk name='vda' checkpoint='bitmap' bitmap='cp3'/>
    <disk name='vdb' checkpoint='no'/>
  </disks>
</domaincheckpoint>
`;

export const DOMAIN = `<domain type='kvm' id='1'>
  <name>lab</name>
  <uuid>02417a03-615c-4678-8d74-105cbe426935</uuid>
  <memory unit='KiB'>65536</memory>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <boot dev='hd'/>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='/var/lib/libvirt/images/vda.qcow2' index='2'/>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
      <alias name='virtio-disk0'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/lv' index='1'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <controller type='usb' index='0' model='none'>
      <alias name='usb'/>
    </controller>
  </devices>
</domain>
`;
